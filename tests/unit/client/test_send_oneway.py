"""send_oneway is the core's; what that does not take is said in the words of its caller."""

import pytest

from shmq.client.producer import Producer


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        (("t",), {}, "missing 1 required positional argument: 'body'"),
        (("t", b"x", "tag"), {}, "takes 3 positional arguments but 4 were given"),
        (("t", b"x"), {"tags": "a"}, "got an unexpected keyword argument 'tags'"),
    ],
)
def test_wrong_arguments_are_those_of_send_oneway(given, named, said):
    with pytest.raises(TypeError) as refused:
        Producer.send_oneway(Producer.__new__(Producer), *given, **named)
    assert str(refused.value) == f"Producer.send_oneway() {said}"


def test_producer_that_was_not_made_by_a_client_is_no_crash():
    with pytest.raises(AttributeError, match="_targets"):
        Producer.__new__(Producer).send_oneway("t", b"x")
