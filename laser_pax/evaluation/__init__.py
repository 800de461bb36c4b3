"""What is done with a trained model: scoring, generation, tables of tasks, export."""
