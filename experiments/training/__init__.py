"""How the shipped networks came to be: training, features, certified references."""
