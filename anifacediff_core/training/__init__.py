"""The trainer: avatar pools, the autoencoder, the capture networks and the two stages of the reenactment
network.
"""
