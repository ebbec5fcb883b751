"""A simulated SO-101: physics, servos behind their protocol, cameras, a scripted operator, lockstep."""
