# decar without a GPU. Build it in a checkout, then give it your sounds:
#   docker build -t decar .
#   docker run --rm -v "$PWD:/data" decar cluster sounds
# Build with --build-arg INDEX= where only PyPI can be reached: torch then comes with CUDA, which takes 5 GB.
FROM python:3.12-slim AS wheels
ARG INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /decar
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY conf conf
COPY src src
RUN python -m venv /opt/decar \
 && /opt/decar/bin/python -m pip install --no-cache-dir -c constraints.txt ${INDEX:+--extra-index-url "$INDEX"} ".[cpu]"

FROM python:3.12-slim
# ffmpeg reads m4a, wma, amr and the sound of videos
RUN apt-get update -q && apt-get install -y -q --no-install-recommends ffmpeg && rm -rf /var/lib/apt/lists/*
COPY --from=wheels /opt/decar /opt/decar
ENV PATH=/opt/decar/bin:$PATH DECAR_CACHE=/data/.decar-cache
WORKDIR /data
ENTRYPOINT ["decar"]
