#!/usr/bin/env bash
# Installs the Debian packages that are missing for `make demo` (argument "demo"), for `make demo-bgp` ("demo-bgp"),
# for `make test` (none), or for that and the peers that `make bench` measures against ("bench"). None of them is
# started, now or at the next boot.
set -euo pipefail

packages=(iproute2 curl ethtool iputils-ping procps)
if [ "${1:-}" = demo-bgp ]; then
  packages+=(bird2)
elif [ "${1:-}" != demo ]; then
  # The race detector needs a C compiler; the others are clients and peers that tests play with.
  packages+=(gcc libc6-dev awscli bind9-dnsutils knot-dnsutils gdnsd bird2 frr knot)
fi
if [ "${1:-}" = bench ]; then
  packages+=(haproxy nginx-light libnginx-mod-stream dnsperf nftables)
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
# Debian also enables them. What was installed before is the user's and stays as it was.
for p in "${missing[@]}"; do
  case $p in
    bird2) systemctl --quiet disable bird 2>/dev/null || true ;;
    frr | haproxy | gdnsd | knot | nftables) systemctl --quiet disable "$p" 2>/dev/null || true ;;
    nginx-light) systemctl --quiet disable nginx 2>/dev/null || true ;;
  esac
done
