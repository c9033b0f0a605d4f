"""A network that makes the mask of an object from a region or a click: the network, its weights, and how it is used."""
