#!/bin/sh
set -eu
apt-get install -y incus
incus admin init --preseed <<-END
	cluster:
	  enabled: true
	  server_name: n2
	  server_address: 10.0.0.7:8443
	  cluster_token: eyJzZXJ2ZXJfbmFtZSI6ICJuMiIsICJmaW5nZXJwcmludCI6ICJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiIiwgImFkZHJlc3NlcyI6IFsiMTAuMC4wLjE6ODQ0MyIsICJbZmQ0Mjo6MV06ODQ0MyJdLCAic2VjcmV0IjogIjAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAiLCAiZXhwaXJlc19hdCI6ICIyMDk5LTAxLTAxVDAwOjAwOjAwLjEyMzQ1Njc4OS0wNDowMCJ9
	END
