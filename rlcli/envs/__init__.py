"""Episodes of several turns: environments and tools that run in processes of their own."""
