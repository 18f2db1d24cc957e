"""`lineside hub bench`: a hub's numbers, each of processes as a plant runs them, on this machine and in one run."""
