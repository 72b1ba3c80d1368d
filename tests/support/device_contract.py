"""What every CUDA device must do; a test class per package inherits it and says how to open one.

On a stub and on a GPU: what has run is seen in the bytes alone.
"""

import numpy as np
import pytest

from edgeuda.errors import DeviceError

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


class DeviceContract:
    """Inherit as ``TestX(DeviceContract)`` and override `open`."""

    def open(self):
        raise NotImplementedError

    @pytest.fixture
    def device(self):
        return self.open()

    @pytest.fixture
    def stream(self, device):
        stream = device.stream()
        yield stream
        device.close_stream(stream)

    def test_says_what_it_is(self, device):
        major, minor = device.runtime_version().split(".")
        assert int(major) >= 11
        assert minor.isdecimal()
        assert device.name
        assert device.integrated() in (True, False)

    def test_bytes_go_there_and_back(self, device, stream):
        address = device.alloc(PIXELS.nbytes)
        device.upload(address, PIXELS)
        back = device.pinned(PIXELS.shape, np.uint8)
        back[:] = 0
        device.download_async(back, address, stream)
        device.synchronize(stream)
        np.testing.assert_array_equal(back, PIXELS)
        device.free(address)
        device.release(back)

    def test_pinned_memory_is_of_its_shape_and_type(self, device, stream):
        address = device.alloc(4 * 6)
        sent, back = (device.pinned((2, 3), np.float32) for _ in range(2))
        assert (sent.shape, sent.dtype) == ((2, 3), np.float32)
        sent[:] = [[1, 2, 3], [4, 5, 6]]
        back[:] = 0
        device.upload_async(address, sent, stream)
        device.download_async(back, address, stream)
        device.synchronize(stream)
        np.testing.assert_array_equal(back, sent)
        device.free(address)
        for array in (sent, back):
            device.release(array)

    def test_mapped_memory_is_the_same_memory(self, device, stream):
        """What the device's address holds is what the host wrote, without a copy to it."""
        written, back = (device.pinned(PIXELS.shape, np.uint8) for _ in range(2))
        written[:], back[:] = PIXELS, 0
        device.download_async(back, device.mapped(written), stream)
        device.synchronize(stream)
        np.testing.assert_array_equal(back, PIXELS)
        for array in (written, back):
            device.release(array)

    def test_events_tell_time(self, device, stream):
        events = [device.event() for _ in range(3)]
        for event in events:
            device.record(event, stream)
        device.synchronize(stream)
        first, second, both = (
            device.elapsed_ns(events[a], events[b]) for a, b in ((0, 1), (1, 2), (0, 2))
        )
        assert min(first, second) >= 0
        assert both == pytest.approx(first + second, rel=0.01, abs=1000)
        for event in events:
            device.close_event(event)

    def test_a_graph_is_recorded_and_replayed_on_what_has_changed(self, device, stream):
        if not device.graphs:
            with pytest.raises(DeviceError, match="no graphs"):
                device.capture(stream, lambda: None)
            return
        sent, back = (device.pinned(PIXELS.shape, np.uint8) for _ in range(2))
        address = device.alloc(PIXELS.nbytes)
        sent[:], back[:] = PIXELS, 99

        def copies():
            device.upload_async(address, sent, stream)
            device.download_async(back, address, stream)

        graph = device.capture(stream, copies)
        device.synchronize(stream)
        assert (back == 99).all()  # recorded, not run
        for added in (0, 7):
            sent[:] = PIXELS + added
            device.launch(graph, stream)
            device.synchronize(stream)
            np.testing.assert_array_equal(back, PIXELS + added)
        device.close_graph(graph)
        device.free(address)
        for array in (sent, back):
            device.release(array)

    def test_what_fails_in_a_capture_is_named_and_the_stream_goes_on(self, device, stream):
        if not device.graphs:
            pytest.skip("this package captures no graphs")

        def fails():
            msg = "the engine refuses"
            raise DeviceError(msg)

        with pytest.raises(DeviceError, match="the engine refuses"):
            device.capture(stream, fails)
        device.synchronize(stream)
        self.test_a_graph_is_recorded_and_replayed_on_what_has_changed(device, stream)

    def test_too_much_memory_is_an_error_that_is_ours(self, device):
        with pytest.raises(DeviceError, match=r"(?i)memory"):
            device.alloc(2**50)
