"""What runs tasks: the threads of this process, or the machines of a Ray cluster."""
