from .arrays import verify_arrays as verify_arrays
from .certificate import (
    Certificate as Certificate,
)
from .certificate import (
    Factor as Factor,
)
from .certificate import (
    Verification as Verification,
)
from .certificate import (
    compose as compose,
)
from .certificate import (
    not_certified as not_certified,
)
from .gain import (
    GainCurve as GainCurve,
)
from .gain import (
    GainResult as GainResult,
)
from .gain import (
    empirical_gain as empirical_gain,
)
from .gain import (
    gain_curve as gain_curve,
)
from .gain import (
    secant_gain as secant_gain,
)
from .implicit import implicit_gain as implicit_gain
from .lmi import Matrices as Matrices
from .lmi import matrices as matrices
from .perceptrons import verify_layers as verify_layers
from .verify import (
    verify as verify,
)
from .verify import (
    verify_chain as verify_chain,
)
