"""SwiftBrush: image-free one-step generation by variational score distillation."""
