"""What every experiment runs on: results that are whole and known by their fingerprint, the look, the judging."""
