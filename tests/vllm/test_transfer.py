"""Weights over a socket: to whom they are given, and that they come whole."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from rlcli.rollout.vllm.weight_transfer import WeightServer, receive, send


def test_only_who_knows_the_key_is_given_weights() -> None:
    weights = [
        ("a", torch.arange(6, dtype=torch.bfloat16).view(2, 3)),
        ("b", torch.tensor(1.5)),
        ("c", torch.randn(300, 200).t()),
        ("d", torch.empty(0, 4)),
    ]
    offer = WeightServer("127.0.0.1")
    taken: list[Any] = []

    def take() -> None:
        with pytest.raises(ConnectionError, match="gives no weights"):
            receive(offer.host, offer.port, "0" * len(offer.key))
        taken.extend(receive(offer.host, offer.port, offer.key))

    thread = threading.Thread(target=take)
    thread.start()
    offer.meet(1, is_over=lambda: False)
    assert send(iter(weights), [offer]) == {}
    thread.join()
    offer.close()
    for (name, tensor), (own_name, own) in zip(weights, taken, strict=True):
        assert name == own_name
        assert tensor.dtype == own.dtype
        assert torch.equal(tensor, own)


def test_weights_that_end_early_are_an_error() -> None:
    offer = WeightServer("127.0.0.1")
    errors: list[Exception] = []

    def take() -> None:
        try:
            list(receive(offer.host, offer.port, offer.key))
        except ConnectionError as error:
            errors.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    offer.meet(1, is_over=lambda: False)
    offer.close()
    thread.join()
    assert "ended before the weights did" in str(errors[0])
    nobody = WeightServer("127.0.0.1")
    with pytest.raises(ConnectionError, match="0 of 1 workers"):
        nobody.meet(1, is_over=lambda: True)
    nobody.close()
