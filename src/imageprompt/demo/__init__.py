"""The bundled tiny stack: the scenes it draws, its weights, its judge and its showcase."""
