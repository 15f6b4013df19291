"""The machine's cores, memory, disks, network and signals."""
