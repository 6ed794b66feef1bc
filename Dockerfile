# CPU:   docker build -t detinfer .
# CUDA:  docker build -t detinfer:cuda --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130 .
# tests/docker/replay.py replays these steps in an empty root, without a Docker engine.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

LABEL org.opencontainers.image.title="detinfer" \
      org.opencontainers.image.description="LLM inference server whose answers are bitwise reproducible" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# libgomp1: without OpenMP, Numba falls back to a threading layer that is slow and unsafe.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libgomp1 python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The cache folder holds models and compiled kernels. An empty named volume takes over its owner.
RUN groupadd --gid 10001 detinfer \
    && useradd --uid 10001 --gid 10001 --create-home detinfer \
    && install --directory --owner=detinfer --group=detinfer /var/cache/detinfer

# pip stays: it fetches the default model, too. --upgrade-deps: PyTorch asks for a setuptools newer
# than Debian's, which PyTorch's own index need not have.
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python3 -m venv --upgrade-deps /opt/venv

# Which PyTorch: its CPU build, one for CUDA, or, when empty, what the default index has.
# GPU kernels never ran on a GPU yet: unless told --device cuda, such an image serves from the CPU.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep ^torch== constraints.txt)"

# Dependencies before sources: an edited source rebuilds only the last, small layers.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt

# One COPY a folder: detinfer/ holds relative symlinks to the other two.
COPY README.md LICENSE ./
COPY detinfer detinfer
COPY kernels kernels
COPY server server
RUN pip install --no-deps . \
    && pip check \
    && rm -rf /src

ENV DETINFER_CACHE=/var/cache/detinfer \
    HF_HOME=/var/cache/detinfer/huggingface
WORKDIR /home/detinfer
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8000

# A first start fetches the model and compiles the kernels. http.client knows of no proxy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]

ENTRYPOINT ["detinfer"]
CMD ["serve", "--host", "0.0.0.0"]
