import pytest

from moe_asr.errors import UserError
from moe_asr.quant.config import QuantConfig


@pytest.mark.parametrize("values, says", [({"targets": ()}, "targets"), ({"block": 63}, "63"), ({"block": 0}, "0")])
def test_what_makes_no_sense_is_refused(values, says):
    with pytest.raises(UserError, match=says):
        QuantConfig(**values)
