module lab.iptl/plan

go 1.25.7

require github.com/gorilla/websocket v1.5.3
