# For a workstation with an NVIDIA GPU and a driver for CUDA 12: everything, training too.
#     docker build -f docker/workstation.Dockerfile -t edgeuda:workstation .
#     docker run --rm --gpus all --shm-size 2g -v "$PWD:/home/edgeuda/work" edgeuda:workstation doctor
FROM python:3.11-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgeuda ./edgeuda
COPY engines ./engines
COPY calibration ./calibration
COPY cli ./cli
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

# CUDA's libraries come with torch, ONNX Runtime and TensorRT; of the image only its base is used.
FROM nvidia/cuda:12.6.3-cudnn-runtime-ubuntu22.04
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /dist /dist
RUN python3 -m venv /opt/edgeuda
ENV PATH="/opt/edgeuda/bin:$PATH"
# Without constraints.txt, whose torch is the one for CPUs.
RUN python -m pip install --no-cache-dir --find-links /dist \
    'edgeuda[train,lite0,quantize,gpu,tensorrt-cu12,recordings,sign]'
RUN useradd --create-home edgeuda
USER edgeuda
WORKDIR /home/edgeuda
ENTRYPOINT ["edgeuda"]
CMD ["--help"]
