"""How nodes and engines name the plugin library's operators. Imports nothing: devices read it too."""

DOMAIN, VERSION = "vditc", "1"
DOMAIN_VERSION = 1  # of the domain's opset import
