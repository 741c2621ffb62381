"""Names that no weight file has a use for but to run code.

Nothing would come of them here, where no name leads to anything. But a file that mentions one is not the
weights that somebody thinks it is.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules, and names in other modules.
_CODE = _words("""
    _ctypes _pickle _posixsubprocess _socket _thread asyncio bdb cloudpickle codeop commands cPickle cProfile
    ctypes dill ensurepip ftplib http httplib idlelib imp importlib joblib marshal msvcrt multiprocessing nt
    os pdb pickle pip pkgutil popen2 posix pty pydoc requests runpy shelve shutil signal smtplib socket
    socketserver subprocess sys telnetlib threading urllib urllib2 webbrowser winreg xmlrpc zipimport
    numpy.distutils numpy.f2py numpy.testing torch._inductor torch.hub torch.package torch.serialization
    torch.utils._config_module torch.utils.bottleneck torch.utils.cpp_extension torch.utils.model_zoo
    _io.FileIO _io.open code.InteractiveConsole code.InteractiveInterpreter code.interact codecs.open
    io.FileIO io.open io.open_code numpy.fromfile numpy.load operator.attrgetter operator.methodcaller
    platform.popen profile.run profile.runctx timeit.main timeit.repeat timeit.timeit torch.compile torch.load
    types.CodeType types.FunctionType types.LambdaType
""")
_ATTRIBUTES = _words("""
    __builtin__ __builtins__ __class__ __dict__ __getattribute__ __globals__ __import__ __init__ __reduce__
    __subclasses__ builtins
""")
_HARMLESS_BUILTINS = _words("""
    Ellipsis NoneType NotImplemented basestring bool bytearray bytes complex dict float frozenset int list
    long object range set slice str tuple type unicode xrange
""")


def runs_code(module: str, name: str) -> bool:
    """Whether whatever has this name is of use only to run something."""
    if module in ("builtins", "__builtin__", "__builtins__"):
        return name not in _HARMLESS_BUILTINS and not name.endswith(("Error", "Exception", "Warning"))
    # a dotted name reaches through a module's own imports: "torch._utils" with "os.system"
    reached, path = name.split("."), f"{module}.{name}".split(".")
    prefixes = {".".join(path[:count]) for count in range(1, len(path) + 1)}
    return not (_CODE.isdisjoint(prefixes.union(reached[:-1])) and _ATTRIBUTES.isdisjoint(reached))
