"""What the robot and the workstation must agree on: contract, messages, wire, reward, frames, artifacts."""
