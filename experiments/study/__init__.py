"""Questions of this project about the samplers: orders, laws, transfer, released packages."""
