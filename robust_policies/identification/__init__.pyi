from .certificate import ModelCertificate as ModelCertificate
from .folder import IdentificationFolder as IdentificationFolder
from .model import IdentifiedModel as IdentifiedModel
from .model import Signals as Signals
from .model import load_model as load_model
from .run import identify as identify
from .settings import IdentificationSettings as IdentificationSettings
from .settings import parse_settings as parse_settings
