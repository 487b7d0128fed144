case $1 in
stdin) while read -r line; do echo "got $line"; done ;;
args) shift && for each; do echo "[$each]"; done ;;
files) cat data/in.txt ;;
text) echo "žluťoučký 雪 🎉" ;;
exit) exit 7 ;;
stderr) echo "to stdout" && echo "to stderr" >&2 ;;
uncaught) set -u && echo "$boom" ;;
sleep) sleep 60 ;;
hog)
  printf -v block '%1000000s' ''
  while :; do held+=("$block"); done
  ;;
flood) seq -f %09.0f 0 999999 ;;
esac
