"""What is sampled from: models with known answers, networks, the data behind them, features."""
