"""What makes and checks parts of this project."""
