-- failed labels by reason, with one example each
select label_run, dataset, status, left(coalesce(raw_text, ''), 120) as reason,
    count(*) as labels,
    min(path) as example,
    max(attempts) as attempts
from labels
where status not in ('ok', 'absent')
group by label_run, dataset, status, reason
order by labels desc, label_run, dataset, reason
