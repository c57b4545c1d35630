"""compress: a lighter adapter, K' and V' in low rank beside the base's own."""
