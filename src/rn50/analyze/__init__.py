"""What a trained network is and does: its architecture, its mistakes, where it looks."""
