def test_what_autograd_keeps_is_counted_once() -> None:
    import torch

    from limbeck.measure import kept_for_backward

    value = torch.ones(1000, requires_grad=True)
    assert kept_for_backward(lambda: value.detach() * 2) == 0
    assert kept_for_backward(lambda: value * value) == 4000
    assert kept_for_backward(lambda: value.exp() * value) == 8000
