"""The bundled tiny stack: its world, its weights, what shows it and what builds it."""
