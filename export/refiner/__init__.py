"""export/refiner."""
