"""What the planner foresees against what is measured."""
