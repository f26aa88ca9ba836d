#!/bin/sh
# Writes the certificates of the tests' TLS servers: 100 years, one key for all, by one authority.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
openssl ecparam -name prime256v1 -genkey -noout -out key.pem
openssl req -x509 -new -key key.pem -sha256 -days 36500 -subj "/CN=internvl tests" \
    -addext "keyUsage=critical,keyCertSign" -out authority.pem
openssl req -new -key key.pem -subj "/CN=server of internvl tests" -out "$work/request"
touch "$work/index"
cat > "$work/config" << CONFIG
[ca]
default_ca = ca
[ca]
database = $work/index
new_certs_dir = $work
rand_serial = yes
unique_subject = no
default_md = sha256
policy = policy
[policy]
commonName = supplied
CONFIG
sign() { # file, names, first day, last day
    printf 'subjectAltName=%s\nbasicConstraints=CA:false\nkeyUsage=critical,digitalSignature\n' "$2" > "$work/$1"
    printf 'subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid:always\n' >> "$work/$1"
    openssl ca -batch -notext -config "$work/config" -cert authority.pem -keyfile key.pem \
        -in "$work/request" -extfile "$work/$1" -startdate "$3" -enddate "$4" -out "$1"
}
sign good.pem IP:127.0.0.1,DNS:pictures.test 20200101000000Z 21200101000000Z
sign expired.pem IP:127.0.0.1 20200101000000Z 20200201000000Z
sign other_host.pem DNS:other.test 20200101000000Z 21200101000000Z
openssl req -x509 -new -key key.pem -sha256 -days 36500 -subj "/CN=127.0.0.1" \
    -addext "subjectAltName=IP:127.0.0.1" -out self_signed.pem
