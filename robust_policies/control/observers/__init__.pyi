from .bound import Boundedness as Boundedness
from .bound import ErrorBound as ErrorBound
from .bound import boundedness as boundedness
from .bound import error_bound as error_bound
from .injection import Observer as Observer
from .injection import OutputInjection as OutputInjection
from .injection import find_output_injection as find_output_injection
