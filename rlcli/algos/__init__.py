"""The algorithms: pure functions on tensors, and the torch-free table that names them."""
