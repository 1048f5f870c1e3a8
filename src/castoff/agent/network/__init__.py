"""The network of the agent's machines: a bridge, what may pass there, and names."""
