"""Few-step score identity distillation with guidance policies and an optional adversarial term."""
