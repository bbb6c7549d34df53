# Programs find the certificates through these two.
cacertHook() {
  export NIX_SSL_CERT_FILE=@out@/etc/ssl/certs/ca-bundle.crt
  export SSL_CERT_FILE=@out@/etc/ssl/certs/ca-bundle.crt
}
cacertHook
