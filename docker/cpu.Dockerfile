# For a vehicle or server without a GPU: calibrate, run, bench, predict, report with ONNX Runtime.
#     docker build -f docker/cpu.Dockerfile -t edgeuda:cpu .
#     docker run --rm -v "$PWD:/home/edgeuda/work" edgeuda:cpu run --model work/adapted.onnx --target work/drive
FROM python:3.11-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgeuda ./edgeuda
COPY engines ./engines
COPY calibration ./calibration
COPY cli ./cli
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.11-slim
# Libraries that opencv-python opens.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /constraints/
COPY --from=wheel /dist /dist
RUN python -m pip install --no-cache-dir --constraint /constraints/constraints.txt \
    --find-links /dist 'edgeuda[cpu,quantize]'
RUN useradd --create-home edgeuda
USER edgeuda
WORKDIR /home/edgeuda
ENTRYPOINT ["edgeuda"]
CMD ["--help"]
