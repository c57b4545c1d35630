"""The words that go with every output."""

NOTICE = (
    "research and teaching only: not a medical device, not for diagnosis; a reference can add "
    "structures that are not there or hide ones that are; no diagnostic accuracy was measured"
)
