"""One generation: its public request, the loop that runs it, its plan and its price."""
