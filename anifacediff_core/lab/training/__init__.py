"""The trainer: avatar pools, autoencoder, capture networks, the two stages of the reenactment network."""
