#!/usr/bin/env bash
# Installs the Debian packages that `make demo` and `make test` need, if any are missing. With the
# argument "bench" also the peers that `make bench` measures against, without starting them as services.
set -euo pipefail

packages=(iproute2 curl ethtool iputils-ping procps awscli bind9-dnsutils knot-dnsutils unbound gdnsd bird2 frr)
if [ "${1:-}" = bench ]; then
  packages+=(haproxy nginx-light libnginx-mod-stream dnsperf)
fi
missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "these packages are missing, and installing them needs root: ${missing[*]}" >&2
  echo "run: sudo apt-get install -y ${missing[*]}" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "this is no Debian: install the equivalents of: ${missing[*]}" >&2
  exit 1
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
if [ ! -e /usr/sbin/policy-rc.d ]; then
  # Debian starts what it installs; a resolver or an nginx is not what the user asked for.
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
