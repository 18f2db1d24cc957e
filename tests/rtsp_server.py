"""An RTSP camera on loopback, by GStreamer's server: prints its port, then serves a moving picture until it is killed.

Run with the system's Python, which has GStreamer's bindings (python3-gi, gir1.2-gst-rtsp-server-1.0). The one argument
is the port; 0 takes a free one.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

STEPS = (
    "videotestsrc is-live=true pattern=ball",
    "video/x-raw,width=320,height=240,framerate=20/1",
    "videoconvert",
    "video/x-raw,format=I420",
    "jpegenc",
    "rtpjpegpay name=pay0 pt=26",
)

Gst.init(None)
server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory.set_shared(True)
factory.set_launch(f"( {' ! '.join(STEPS)} )")
server.get_mount_points().add_factory("/cam", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
