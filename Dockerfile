# captionmill in a container, built from this folder:
#   docker build -t captionmill .                              for CPUs
#   docker build -t captionmill --build-arg TORCH=cuda .       for NVIDIA GPUs, several GB larger
# and run as the user who owns the files, with the folder of images as the working directory:
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" captionmill caption photos --model model --output captions.csv
FROM python:3.12-slim AS build
ARG TORCH=cpu
# before the source, so that a change of that fetches no torch again
RUN python -m venv /opt/captionmill \
    && if [ "$TORCH" = cpu ]; then builds="--index-url https://download.pytorch.org/whl/cpu"; fi \
    && /opt/captionmill/bin/pip install --no-cache-dir torch torchvision $builds
COPY . /source
# torch's own tests in C++ and its headers, 145 MB, are for nobody who runs it
RUN /opt/captionmill/bin/pip install --no-cache-dir '/source[remote,parquet,heif,tiff]' \
    && cd /opt/captionmill/lib/python3*/site-packages/torch && rm -rf test include

FROM python:3.12-slim
COPY --from=build /opt/captionmill /opt/captionmill
RUN useradd --create-home --uid 1000 captionmill && mkdir -m 1777 /cache
# the network's weights and fetched models are kept in /cache, matplotlib's fonts too: mount a folder there to keep them;
# it is the home of whoever runs this, because a user of --user has none
ENV PATH=/opt/captionmill/bin:$PATH HOME=/cache TORCH_HOME=/cache/torch CAPTIONMILL_CACHE=/cache/captionmill MPLCONFIGDIR=/cache/matplotlib
USER captionmill
WORKDIR /work
ENTRYPOINT ["captionmill"]
CMD ["--help"]
