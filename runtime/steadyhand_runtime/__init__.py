"""What runs beside the arm: servo bus, cameras, control loop, inference, safety, operator, link, simulation."""
