"""Building blocks of networks: norms, attention, embeddings, convolutional blocks."""
