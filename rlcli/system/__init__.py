"""What the machine has: cores, memory, disks, network, signals."""
