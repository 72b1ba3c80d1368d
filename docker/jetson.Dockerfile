# For a Jetson Orin with JetPack 6: TensorRT and its Python module are NVIDIA's, from the image.
#     docker build -f docker/jetson.Dockerfile -t edgeuda:jetson .      (on the Jetson itself)
#     docker run --rm --runtime nvidia -v "$PWD:/home/edgeuda/work" edgeuda:jetson doctor
# The engine is built where it runs: `edgeuda build` in the running container.
FROM python:3.11-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgeuda ./edgeuda
COPY engines ./engines
COPY calibration ./calibration
COPY cli ./cli
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /dist /dist
# With the image's packages in sight: its tensorrt is on no index.
RUN python3 -m venv --system-site-packages /opt/edgeuda
ENV PATH="/opt/edgeuda/bin:$PATH"
RUN python -m pip install --no-cache-dir --find-links /dist 'edgeuda[cpu,jetpack6]'
RUN useradd --create-home edgeuda
USER edgeuda
WORKDIR /home/edgeuda
ENTRYPOINT ["edgeuda"]
CMD ["--help"]
